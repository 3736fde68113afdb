"""Folders on disk and in object stores: paths, durable writes, who owns a run."""

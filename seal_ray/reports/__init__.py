"""One self-contained HTML page of what runs and their analyses have come to: `seal-ray report`.

`study` reads run folders; `curves` and `words` say what they mean; `charts` and `small_charts` draw it, and
know no folders; `accuracy`, `reasons` and `record` make sections of it, and `page` puts them together.
"""

"""One self-contained HTML page of what runs and their analyses have come to: `seal-ray report`.

`source` and `facts` read run folders; `curves` and `words` say what they mean; `lines` and `panels` draw it,
and know no folders; `training`, `insight` and `record` make sections of it, and `page` puts them together.
"""

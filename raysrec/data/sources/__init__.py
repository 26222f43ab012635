"""Raw interactions: which files a source consists of, what each published format looks like, and who reads it."""

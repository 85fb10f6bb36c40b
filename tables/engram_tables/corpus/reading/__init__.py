"""Documents from whatever holds them: files, directories, URLs, streams, in every format and compression."""

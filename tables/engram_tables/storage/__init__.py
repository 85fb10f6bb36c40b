"""Where do a row's bytes live? Codecs, layout, writer, reader and verification; knows no devices."""

"""Is a table whole, is it the source's, and where do two differ?"""

"""The two ways in which people tokenize today, as a user would write them, held beside `tokenmill run`."""

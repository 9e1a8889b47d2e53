"""Problems to solutions: ask a server, run the code that the model writes, grade, and keep every row."""

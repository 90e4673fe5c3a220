"""What is around the program: the folder it is started in, and the folders where libraries keep what they make."""

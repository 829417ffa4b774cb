"""`python -m keras_dlopt` is the command `keras-dlopt`."""

from keras_dlopt.cli import main

main()

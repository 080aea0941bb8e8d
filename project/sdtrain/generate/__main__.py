import sys

from sdtrain.generate.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

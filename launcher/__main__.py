"""`python -m launcher`: the same as the console script `dist-train`."""

from launcher.cli import main

if __name__ == "__main__":
    main()

"""`python -m tinygemm.cli ...`: the same as `tinygemm ...`."""

from tinygemm.cli import main

if __name__ == "__main__":
    main()

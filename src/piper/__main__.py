"""`python -m piper` is `piper`."""

from piper.cli import main

if __name__ == "__main__":
    main()

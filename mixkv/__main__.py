"""`python -m mixkv` is the command `mixkv`."""

from mixkv.cli.start import main

if __name__ == "__main__":
    main()

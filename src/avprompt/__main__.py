"""`python -m avprompt`."""

from avprompt.cli import main

if __name__ == "__main__":
    main()

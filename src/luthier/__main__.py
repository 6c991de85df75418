"""`python -m luthier …` is `luthier …`."""

from luthier.cli.main import main

main()

"""``python -m groupnorm.cli``: the ``groupnorm`` command without its script."""

from groupnorm.cli import main

main()

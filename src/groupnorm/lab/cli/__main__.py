"""``python -m groupnorm.lab.cli``: the ``groupnorm`` command without its script."""

from groupnorm.lab.cli import main

main()

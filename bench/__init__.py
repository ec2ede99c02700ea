"""Measures sslfast against what people use today, in one run on one machine.

``sslfast bench`` is the way in; ``python -m sslfast.bench.worker`` is the process that one case
runs in. A case is a registered loss or primitive at given shapes with its contestants:

* ``suite``        enumerates the registry into cases; ``contrastive`` adds a family's own shapes;
* ``peers``        the contestants beside sslfast: eager, ``torch.compile``, other libraries;
* ``correctness``  the float64 oracle every contestant has to match before its time is reported;
* ``timing``, ``machine``  interleaved clocks, and the limits of the machine they ran on;
* ``ledger``, ``report``, ``plots``  what is kept, printed and drawn.
"""

"""Measures sslfast against what people use today, in one run on one machine.

``sslfast bench`` is the way in; ``python -m sslfast.bench.worker`` is the process that one case
runs in. A case is a registered loss or primitive at given shapes with its contestants:

* ``suite``        enumerates the registry into cases; the module of a family, ``contrastive`` for
  example, adds the shapes that its users meet;
* ``place``        the device and precision of a case; the CPU in float32, or a GPU in any of four;
* ``contestants``  sslfast on its backends, eager, ``torch.compile``, and whoever is a peer:
  ``peers`` (other libraries) and ``formulas`` (plain torch as others write it, a file a family);
* ``correctness``  the float64 oracle every contestant has to match before its time is reported;
* ``timing``, ``clock``  contestants in turns, under the clock of their device;
* ``machine``, ``gpu``  what ran it and which limits that has, measured in the same run;
* ``ledger``, ``report``, ``plots``  what is kept, printed and drawn;
* ``gpu_check``    all of it on a bare machine with a GPU: ``make gpu-check``.
"""

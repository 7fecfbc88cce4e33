"""The demo model of rwkv-edge, for `rwkv_edge.Model(rwkv_edge_demo.PATH)`: 9 million parameters, as int8.

The command `rwkv-edge` of the package rwkv-edge takes it where no model is named.
"""

import os

PATH: str = os.path.join(os.path.dirname(os.path.abspath(__file__)), "demo.rwkv")

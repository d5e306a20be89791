"""The executable definition: eager DP-SGD in plain NumPy. No caching, no in-place tricks, no speed switches."""

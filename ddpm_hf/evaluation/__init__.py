"""How good images are: features of them, scores beside those of real images, and the report that says so.

``report`` is light; the other modules need torch.
"""

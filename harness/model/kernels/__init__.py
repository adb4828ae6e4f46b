"""Triton kernels for the steps between a card's matrix products; each reads its input once.

Shapes: c classes of a tile, n images, D features. A program handles `logits.ROWS` classes of
`logits.COLUMNS` images. `maxima.Partial` holds what each program finds for an image, by block of
classes, and the next kernel adds it up in a fixed order. All arithmetic is float32. Elements of a
tile are counted in 32 bits, because wider addresses cost as much as the exponentials.
"""

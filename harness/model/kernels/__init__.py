"""What happens between a card's matrix products, in Triton: each kernel reads its input once.

Shapes: c classes of a tile, n images, D features. A program takes `logits.ROWS` classes of
`logits.COLUMNS` images; what programs of one image find is `maxima.Partial`, by block of classes,
and the next kernel adds it up in a fixed order. All arithmetic is float32. A tile's elements are
counted in 32 bits: wider addresses cost as much as the exponentials.
"""

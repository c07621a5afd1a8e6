"""The architectures and encoders of segmentation-models-pytorch (smp), and converters of its models.

`catalog` lists names and options without importing smp, `models` builds whole architectures, `encoders` makes smp's
encoders parts of a network, and `convert` turns a trained `smp.Unet` into a network of parts and reads the folders that
`save_pretrained` writes.
"""

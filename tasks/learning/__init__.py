"""Networks and how they are trained: pure, no files, no services.

`models` builds networks, `recipes` says how they are trained, `training` trains them, `evaluation` measures them,
`fitting` and `convolution` make that fast for small images without changing a result by more than rounding.

`countermeasures` lists what a person would try who trains on protected images: `filtering` and `projection` change the
images before a training, `mixing` and `adversarial` step in between a batch and the network (`interventions`).
"""

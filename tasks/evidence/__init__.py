"""Evidence: how much a data set's protection costs those who train on it, plainly or trying to undo it.

A **cell** is one question: trained on this, treated like that, with this network and seed, how many clean test images
are right? `presets` makes the list of cells, `run` answers them one by one and never twice, `report` shows the answers.
"""

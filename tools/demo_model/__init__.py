"""The recipe of the demo model: data, networks, training, judge, export. Start with `python -m tools.demo_model --help`.

    captions.py   sentences of the grammar (wan_compat/policies/demo_grammar.py), and who is held out of the training
    scenes.py     what happens in a clip, and its pixels
    fields.py     the same clip as the transformer sees it: the latents
    networks.py   the four parts, in diffusers' and transformers' own classes
    muon.py       the optimiser
    training.py   what all trainings share: steps, averages, checkpoints
    painter.py    trains the VAE: decoder (latents to pixels) and encoder (pixels to latents)
    mover.py      trains the transformer and the text encoder (words and noise to latents)
    export.py     WanPipeline.save_pretrained, and how the parts are put together
    judge.py      what a program sees in the pixels of a clip
    prompts.py    the prompts that measurements use
    measure.py    the tables of docs/demo_model.md, and the pictures of the README

Data, judge and prompts need numpy only; the rest needs the `worker` extra.
"""

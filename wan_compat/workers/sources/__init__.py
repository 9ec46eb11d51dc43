"""Components whose tensors do not lie in their own folder in diffusers layout, and what is laid over a component.

weights   tensors of single files and shards, under the names that the model has        gguf      quantised ones
models    a model of the libraries' class with these tensors, every one accounted for   lora      changes to a model
quantize  weights in fewer bits, by an installed backend
"""

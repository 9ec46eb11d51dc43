"""Which file gives which component, under which names and with which configuration.

spelling   names of the libraries, translated back       compose   a folder's parts and single files as one model
single     one part from files outside of its folder     lora      what a LoRA adapts, matched layer by layer
written    LoRAs and quantised parts as a person writes them
"""

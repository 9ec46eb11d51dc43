"""A batch: many videos from one file. What its lines ask for, what each is called, what is left to do.

fields      which names a line may use, and what a text in a cell means
items       the values: a line as it was read, what is wrong with it, one video to make
expansion   lines and defaults -> items, or everything that is wrong with them
names       templates of output names, and what a name may be
records     the lines of the journal
progress    what the journal says about the items -> what is left, in which order
carry       what one item's recovery teaches the following ones
"""

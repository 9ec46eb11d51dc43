"""A zygote that misbehaves on purpose: some library opened the driver's device in it. /dev/full stands in for that."""

import os

from wan_compat.workers import gpu, zygote

gpu._DEVICES = "/dev/full"
os.open("/dev/full", os.O_RDWR)
zygote.main()

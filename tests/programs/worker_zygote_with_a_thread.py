"""A zygote that misbehaves on purpose: some library started a thread in it."""

import threading

from wan_compat.workers import zygote

threading.Thread(target=threading.Event().wait, daemon=True).start()
zygote.main()

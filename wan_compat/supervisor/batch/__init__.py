"""A batch as it runs: files read, folder held, journal kept, jobs followed. What is decided is in policies/batch.

reading, reading_yaml   a batch file -> lines
preflight               lines -> items that may run here, or everything that is wrong with them
folder                  the batch's folder: where what lies, who holds it
journal                 what happened, one durable record after the other
leases                  who makes which item, among several processes and machines
finding                 a video that a crash left without its record
runner                  the items, one after the other or several at once
room                    a full disk, waited for
report                  summary.json and report.html
status                  the same questions, asked from outside
"""

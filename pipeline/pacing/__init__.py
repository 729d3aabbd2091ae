"""When ads stop and go on: serving states and the signals that tell the ad servers.

Pure: a policy is given what an entity has spent of its limits and what it was last told, and
returns the signal to send, if any. Money is not decided here (`pipeline.billing` never charges
over a limit); this is about serving as little as possible for free.
"""

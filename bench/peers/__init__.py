"""What a user would write instead, each doing the same simple job (`job`) on the same topics.

They run in an environment of their own (requirements.lock beside this file): two of them need
other versions of the product's dependencies.
"""

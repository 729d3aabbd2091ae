"""An ad-serving simulator: a world of advertisers and Pinners, and a fleet that obeys signals.

Owns nothing of the product: it speaks to it through the public contract alone (topics, messages,
signals), as real ad servers do. All randomness comes from a seed.
"""

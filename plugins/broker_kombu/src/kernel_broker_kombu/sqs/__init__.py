"""Amazon SQS, and servers that speak its protocol. Queue names, URLs, options and message format are kombu's.

A message's body is kombu's envelope in base64. What we have to remember of it stands in message attributes, which
kombu's peers do not look at, so the body is never changed:

    kw-attempts   deliveries that were counted
    kw-returns    how often its task was unknown
    kw-returned   "1": it was delivered before, and given back
    kw-until      unix time of the next delivery, where SQS could not wait so long (900 s) in one go
    kw-reason, kw-died-at   of a dead letter, in the queue `<queue>.kw-dead`

A reserved message is invisible for as long as our lease, which `renew` prolongs. Giving back, delaying and burying
are: send a copy, then delete. So SQS's own count of receives is 1 until a lease has run out, and says whose holder died.
"""

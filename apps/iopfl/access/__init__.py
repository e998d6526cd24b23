"""Who may use a label server, how they sign in, and the record of what they did.

From the network inwards: `limits` (is the request one for this server?), `gate` (may it in?),
`identity` (who sends it: a token of `users`, a cookie of `sessions`, or the hospital's `realm`),
`auditing` (one line in the `audit` log), `roles` (which routes are whose).
"""

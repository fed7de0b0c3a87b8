// Package adapt decides what the replies of remote hosts mean for the pace:
// which rules of automation they set off (Watch), and how much slower a
// source goes to a site that asks for patience (Slowdown). It is pure: its
// callers say what time it is, and act on what it returns.
package adapt

// Package submission is the law of what clients hand in, the same at every
// door: where a header section ends, which fields are not relayed, what is
// refused, whom a client may name as the author, and what is added. The doors
// speak SMTP and HTTP, and ask here. What postrider.submit does in SQL is the
// same by its own code (migrations/0055_submit.sql); TestLaw in
// services/ingress holds all of them against one table.
package submission

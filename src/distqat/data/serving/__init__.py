"""One data set for all trainers of a host: who reads it, who is given what, through shared memory."""

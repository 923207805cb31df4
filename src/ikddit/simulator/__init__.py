"""A simulated fab that writes MPOM data with an exactly known noise floor."""

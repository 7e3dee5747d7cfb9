"""Which group norms can take over the activation after them, shown from the code, and the change that lets them."""

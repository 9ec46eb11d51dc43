"""What crosses a process boundary: messages, their codec and states, the frame ring's layout, errors, plain values."""

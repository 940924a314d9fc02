"""moela inside other libraries; each of them is imported only when it is asked for."""

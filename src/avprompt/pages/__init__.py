"""HTML pages that need no server and no network: templates, and what stands in the page of a prediction."""

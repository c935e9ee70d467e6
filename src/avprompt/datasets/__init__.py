"""The datasets: annotations, what each is called, where its files lie."""

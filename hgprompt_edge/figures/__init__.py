"""What all figures share: colours, fonts, rows of accuracies with intervals, saving."""

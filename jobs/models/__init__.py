"""Model versions: the champion, and the comparison that promotes a challenger."""

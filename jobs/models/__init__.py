"""Model versions: their list, the champion, and the comparison that promotes a challenger."""

"""eqjax: differentiable dynamics. A force field settles, the settled state answers, and the gradient comes
back by settling again."""
